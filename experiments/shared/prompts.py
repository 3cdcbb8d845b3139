"""Prompts for the original model's own chats: templates times subjects, drawn with a seed.

python prompts.py COUNT SEED OUT.txt
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

SUBJECTS = (
    """
bread|volcanoes|the water cycle|chess openings|bicycles|sleep|the moon|gravity|photosynthesis|honey bees|glaciers|
compound interest|inflation|supply and demand|the printing press|the Roman Empire|the Silk Road|the French Revolution|
vaccines|antibiotics|the human heart|the immune system|DNA|evolution|dinosaurs|whales|migration of birds|rainforests|
deserts|coral reefs|earthquakes|tides|the ozone layer|renewable energy|solar panels|wind turbines|batteries|magnets|
electric motors|light bulbs|lasers|telescopes|microscopes|thermometers|clocks|maps|compasses|bridges|railways|airplanes|
ships|submarines|rockets|satellites|the internet|email|search engines|passwords|encryption|databases|spreadsheets|
operating systems|compilers|recursion|binary search|sorting algorithms|linked lists|hash tables|regular expressions|
version control|unit tests|Python lists|Python dictionaries|for loops|functions in programming|variables|fractions|
prime numbers|probability|statistics|averages|percentages|geometry|the Pythagorean theorem|algebra|graphs|matrices|
poetry|haiku|short stories|fairy tales|Shakespeare|novels|essays|letters|speeches|job interviews|resumes|budgets|
time management|meditation|yoga|running|swimming|football|basketball|tennis|gardening|tomatoes|potatoes|coffee|tea|
chocolate|cheese|soup|pasta|rice|salads|breakfast|cooking for a family|travelling by train|camping|hiking|photography|
painting|music theory|the piano|the guitar|jazz|opera|films|theatre|museums|libraries|schools|universities|teachers|
friendship|honesty|courage|patience|gratitude|teamwork|leadership|conflict at work|public speaking|negotiation|
small businesses|marketing|taxes|insurance|saving money|buying a house|renting a flat|moving to a new city|pets|dogs|
cats|horses|goldfish|elephants|penguins|wolves|spiders|mushrooms|oak trees|roses|clouds|snow|thunderstorms|
rainbows|seasons|
""".replace("\n", "")
    .strip("|")
    .split("|")
)
TEMPLATES = (
    """
Explain {} to a child.|Explain {} in three sentences.|What is the most important thing to know about {}?|
Write a short story about {}.|Write a poem about {}.|List five facts about {}.|Give me step-by-step advice on {}.|
What are the advantages and disadvantages of {}?|Compare {} and {}.|How are {} and {} related?|
Write an email to a friend about {}.|Write a product description that has to do with {}.|
Why does {} matter?|What are common mistakes people make with {}?|Summarise the history of {}.|
Write a dialogue between two people about {}.|
Ask me five questions about {}.|Give a definition of {} and an example.|
Write a paragraph that ends with a question about {}.|
Write an outline for an essay on {}.|Can you recommend ways to learn more about {}?|Write a quiz on {} with answers.|
What would happen without {}?|Tell me something surprising about {}.|Write a Python program that has to do with {}.|
I know nothing about {}. Where do I begin?|Write a news report about {} and {}.|Describe {} as if it were {}.|
Write a checklist for {}.|Translate the idea of {} into everyday language.|Explain how {} works, with numbers.|
Write instructions for someone who has never seen {}.|Rewrite this more politely: I do not care about {}.|
What did people think about {} a hundred years ago?|Make a table of contents for a book on {}.|
""".replace("\n", "")
    .strip("|")
    .split("|")
)


def prompts(count: int, seed: int) -> list[str]:
    """Return ``count`` different prompts."""
    draw = random.Random(seed)
    chosen: dict[str, None] = {}
    while len(chosen) < count:
        template = draw.choice(TEMPLATES)
        chosen[template.format(*draw.sample(SUBJECTS, template.count("{}")))] = None
    return list(chosen)


if __name__ == "__main__":
    Path(sys.argv[3]).write_text("\n".join(prompts(int(sys.argv[1]), int(sys.argv[2]))) + "\n")
