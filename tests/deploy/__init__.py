"""What is deployed: rules that no checker knows, and proof that the checkers see."""
