"""Training loops on Ray Train, as the stages start them and hear of them."""
