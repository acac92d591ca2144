"""What vectorshard processes say to each other; not part of the contract."""
