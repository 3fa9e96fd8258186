"""Cannot be imported."""

raise ImportError("this module wants another compiler")
