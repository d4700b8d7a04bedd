"""Float model to float model: one file a technique, `steps.py` names them."""
