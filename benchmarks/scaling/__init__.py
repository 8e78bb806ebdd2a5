"""Parts of `scale.py`: what one rank does, what it says to the others, and what that makes of many GPUs."""
