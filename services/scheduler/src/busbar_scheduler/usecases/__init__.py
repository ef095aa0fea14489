"""What the scheduler does: gather, decide, publish; declare; push."""
