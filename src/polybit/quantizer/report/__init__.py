"""What a conversion leaves beside the weights for its readers: report.html, report.png and a model card."""
