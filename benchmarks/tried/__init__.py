"""What `compatibility.py` tries, by program."""
