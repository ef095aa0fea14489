"""One verb each: load, decide, save and publish."""
