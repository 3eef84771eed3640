"""What the command line says without any command being imported: help, mistakes in options, completion."""
