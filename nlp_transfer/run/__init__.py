"""The parts of a single run: settings, output folder, saved model, scores, and records."""
