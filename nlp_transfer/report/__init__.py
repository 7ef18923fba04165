"""What a person looks at: the model card and plots."""
