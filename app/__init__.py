"""The Streamlit shell around engine and store."""
