"""Planning protocols, one file each."""
