"""Charts: a table in, an Altair chart out. No Streamlit."""
