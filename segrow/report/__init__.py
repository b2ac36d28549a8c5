"""What a reader sees: tables, figures, one self-contained page."""
