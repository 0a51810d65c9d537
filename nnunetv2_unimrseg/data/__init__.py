"""Reading and checking the files of cases."""
