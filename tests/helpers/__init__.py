"""What the tests share. tests/conftest.py puts this folder's parent on the path: ``from helpers.cases import ...``."""
