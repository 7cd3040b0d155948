"""What becomes of drawn codes: pictures, their order and their files."""
