"""What comes out, held against what went in or what was wanted."""
