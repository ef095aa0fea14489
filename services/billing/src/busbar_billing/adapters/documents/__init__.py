"""Statements as people, spreadsheets and cost tools read them; from what was kept at issue."""
