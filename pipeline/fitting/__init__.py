"""A model fitted to an accelerator: edits before export, and a cut where the accelerator ends."""
