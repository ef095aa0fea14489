"""The bus of Busbar: what exists on it (`topology`) and how services use it."""
