"""What each command does with the library's results: call one function, render, return the exit code."""
