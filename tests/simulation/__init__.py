"""Production's decisions of several services together, in virtual time."""
