"""What encoder-decoder models need beyond encoders: building and warm-starting them, target tokenizers, generation."""
