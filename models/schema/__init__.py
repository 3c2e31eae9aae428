"""JSON Schema as callers write it, put as llguidance enforces it, or refused by keyword. Knows no tokens."""
