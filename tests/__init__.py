"""What must hold. Mirrors shard/ and router/; test_house.py holds the rules of the house."""
