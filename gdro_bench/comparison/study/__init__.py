"""A human study: blind comparisons of two methods' pictures on one page, and what the answers to it say. `pairs` draws
what is shown, `page` writes it, `answers` reads what came back."""
