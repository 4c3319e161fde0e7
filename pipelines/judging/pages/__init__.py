"""What the terminal and a browser show of them."""
