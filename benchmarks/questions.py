"""What benchmarks ask a chat model: everyday questions, always the same."""

QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Explain in three sentences why the sky is blue.",
    "Write a short story about a lighthouse keeper and a storm.",
    "List five things to pack for a hike in the mountains.",
    "How do I reverse a list in Python? Show an example.",
    "Give me a recipe for a simple vegetable soup.",
    "What is the difference between a virus and a bacterium?",
    "Write a polite email that asks a colleague to move a meeting.",
    "Why do leaves change their colour in autumn?",
    "Name three ways to save water at home.",
)
