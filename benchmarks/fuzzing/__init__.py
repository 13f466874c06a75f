"""What `fuzz.py` is made of: files to spoil, ways to spoil them, and calls that are watched."""
