"""What must be true of the books, checked by recomputing it: rows in, findings out."""
