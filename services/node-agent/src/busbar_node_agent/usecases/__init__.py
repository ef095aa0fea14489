"""What the agent does, one verb each."""
