"""OFA as a fairseq plugin. Importing this package registers everything; nothing else happens at import."""
