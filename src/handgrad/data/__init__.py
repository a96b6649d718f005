"""The data that come with the package, and the script that made them; see NOTICE beside this file."""
