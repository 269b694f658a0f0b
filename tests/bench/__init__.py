"""The measured figures of the project, each beside a peer from the same run (`make bench`)."""
