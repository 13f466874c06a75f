"""Parts of `reliability.py`: runs that are killed, damaged files, memory that is watched."""
