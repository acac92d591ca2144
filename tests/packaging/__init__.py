"""What is installed: the wheel, alone and with its extras."""
