"""The face and the flow: configuration, plan, engine, gates and reports."""
