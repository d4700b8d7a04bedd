"""What each target takes, refuses and needs beside the model. One module a target; `registry` names them."""
