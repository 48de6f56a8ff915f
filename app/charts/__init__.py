"""Charts: a table in, a Vega-Lite chart out. No Streamlit."""
