"""What is wrong with a deployment, kind by kind; each with the command or step that mends it."""
