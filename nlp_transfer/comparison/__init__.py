"""The parts of `compare`: what is run, how each run gets a process of its own, what the figures say, and how that is shown."""
