"""Studies, models, forward passes, interventions and analyses. No Streamlit, no Zarr."""
