"""Hostile input, made from seeds: files, wheels and settings. The seeded tests here run some hundreds of them,
`scripts/endurance/fuzz_readers.py` a hundred thousand."""
