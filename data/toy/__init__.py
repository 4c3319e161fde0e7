"""The generated instruction world of the quickstart and of tests."""
