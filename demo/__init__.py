"""`./dev demo`: the agent at work on real storage."""
