"""Sentence frames for questions about prices, the menu and the shop."""

from __future__ import annotations

POLITE = (
    "",
    "",
    "",
    "",
    "Hi,",
    "Hello,",
    "Excuse me,",
    "Quick question:",
    "One question,",
    "Before I order,",
    "Sorry to bother you,",
    "Just wondering,",
    "Good evening,",
)

ANSWER_OPENERS = (
    "",
    "",
    "Sure.",
    "Of course.",
    "Certainly.",
    "Thanks for asking.",
    "No problem.",
    "Let me see.",
    "Good question.",
    "Let me check the menu.",
    "Here you go.",
    "One moment.",
)

PRICE_ASKS = (
    "How much is {x}?",
    "What does {x} cost?",
    "What is the price of {x}?",
    "What do you charge for {x}?",
    "How much do you charge for {x}?",
    "How much does {x} cost?",
    "How much would {x} be?",
    "What would I pay for {x}?",
    "Can you tell me the price of {x}?",
    "I'd like to know the price of {x}.",
    "Could you tell me what {x} costs?",
    "How much for {x}?",
    "What will {x} cost me?",
    "Do you know how much {x} is?",
    "Please tell me the cost of {x}.",
    "How many dollars is {x}?",
)

PRICE_REPLIES = (
    "{x} is {price}.",
    "{x} costs {price}.",
    "The price of {x} is {price}.",
    "For {x} we charge {price}.",
    "{x} is priced at {price}.",
    "We sell {x} for {price}.",
    "You can have {x} for {price}.",
    "{x} goes for {price}.",
    "On our menu {x} is {price}.",
    "With us {x} costs {price}.",
    "Right now {x} is {price}.",
    "You get {x} for {price}.",
    "That would be {x} for {price}.",
)

PRICE_CLOSERS = (
    *("",) * 10,
    "Would you like to order?",
    "Shall I put in an order?",
    "Do you want to order now?",
    "Anything else you would like to know?",
    "Let me know if you want it.",
    "Tax is included.",
    "Can I get you anything?",
    "What can I get you?",
)

PAIR_ASKS = (
    "How much are {a} and {b}?",
    "What do {a} and {b} cost?",
    "What are the prices of {a} and {b}?",
    "How much is {a}, and how much is {b}?",
    "What does {a} cost, and what about {b}?",
    "Can you tell me the price of {a} and the price of {b}?",
    "What do you charge for {a} and for {b}?",
    "I'd like to know the prices of {a} and {b}.",
    "Please tell me what {a} costs, and {b} too.",
    "How much for {a}, and for {b}?",
)

PAIR_REPLIES = (
    "{a} is {p} and {b} is {r}.",
    "{a} costs {p} and {b} costs {r}.",
    "{a} is {p}, and {b} is {r}.",
    "For {a} we charge {p}, and for {b} {r}.",
    "We sell {a} for {p} and {b} for {r}.",
    "{a} goes for {p}, {b} for {r}.",
    "The price of {a} is {p}, and {b} is {r}.",
    "You can have {a} for {p} and {b} for {r}.",
    "On our menu {a} is {p} and {b} is {r}.",
    "{a} is priced at {p} and {b} at {r}.",
    "Right now {a} costs {p}, and {b} costs {r}.",
)

SIZES_ASKS = (
    "How much is the {x} pizza?",
    "What does the {x} pizza cost?",
    "What is the price of your {x} pizza?",
    "What do you charge for the {x} pizza?",
    "How much are your {x} pizzas?",
    "What are the prices for the {x} pizza?",
    "How much does the {x} cost in each size?",
    "Can you tell me what the {x} pizza costs?",
    "I'd like to know the prices of the {x} pizza.",
    "What does the {x} cost in small, medium and large?",
    "Please tell me the {x} pizza prices.",
    "How much would the {x} pizza be?",
)

SIZES_REPLIES = (
    "For the {x} pizza, {listed}.",
    "The {x} pizza comes in three sizes: {listed}.",
    "For our {x} pizza, {listed}.",
    "With the {x} pizza, {listed}.",
    "That depends on the size. For the {x} pizza, {listed}.",
    "Our {x} pizza is priced by size: {listed}.",
    "The {x} prices are simple: {listed}.",
    "Here is the {x} pizza by size: {listed}.",
    "If you want the {x} pizza, {listed}.",
    "For a {x} pizza, {listed}.",
    "On the {x} pizza, {listed}.",
)

GROUP_ASKS = (
    "What {x} do you have?",
    "Which {x} do you have?",
    "Which {x} can I get?",
    "What {x} are there?",
    "What {x} do you offer?",
    "Can you list your {x}?",
    "What are your {x}?",
    "Could you tell me which {x} you have?",
    "Tell me about your {x}, please.",
    "What kinds of {x} do you have?",
    "Which {x} are on the menu?",
    "I'd like to know what {x} you have.",
    "What are my choices for {x}?",
    "What can I choose from for {x}?",
    "Please tell me the {x} you offer.",
    "Do you have a list of {x}?",
)

GROUP_REPLIES = (
    "We have {listed}.",
    "Our {x} are {listed}.",
    "You can choose {listed}.",
    "The {x} are {listed}.",
    "For {x} we have {listed}.",
    "We offer {listed}.",
    "You can get {listed}.",
    "These are our {x}: {listed}.",
    "You will find {listed}.",
    "On the menu we have {listed}.",
    "As for {x}, we have {listed}.",
    "Today we have {listed}.",
    "You can pick from {listed}.",
    "Our list of {x} is {listed}.",
    "The menu says {listed}.",
)

MENU_CLOSERS = (
    *("",) * 10,
    "What would you like?",
    "What can I get you?",
    "Would you like to order?",
    "Which would you like?",
    "Tell me what you would like.",
    "Do you want to order now?",
    "Let me know what you choose.",
    "Does that help?",
    "Shall I put in an order?",
)

INFO_CLOSERS = (
    *("",) * 10,
    "What would you like?",
    "What can I get you?",
    "Would you like to order?",
    "May I take your order?",
    "Do you want to order now?",
    "Does that help?",
    "Shall I put in an order?",
    "Is there anything else you want to know?",
)

ON_ASKS = (
    "What is on the {x} pizza?",
    "What's on the {x}?",
    "What comes on the {x} pizza?",
    "Which toppings are on the {x} pizza?",
    "What do you put on the {x} pizza?",
    "Can you tell me what is on the {x} pizza?",
    "What is in your {x} pizza?",
    "What goes on the {x}?",
    "Tell me what is on the {x}, please.",
    "What are the ingredients of the {x} pizza?",
    "I'd like to know what is on the {x} pizza.",
    "Could you describe the {x} pizza?",
)

ON_REPLIES = (
    "The {x} pizza has {listed}.",
    "On the {x} pizza we put {listed}.",
    "The {x} comes with {listed}.",
    "Our {x} pizza has {listed} on it.",
    "You will find {listed} on the {x} pizza.",
    "We make the {x} pizza with {listed}.",
    "The {x} is topped with {listed}.",
    "You get {listed} on the {x} pizza.",
    "The {x} pizza is made with {listed}.",
    "We top the {x} with {listed}.",
    "For the {x} pizza we use {listed}.",
)

HAVE_ASKS = (
    "Do you have {x}?",
    "Do you sell {x}?",
    "Can I get {x}?",
    "Have you got {x}?",
    "Do you offer {x}?",
    "Can I find {x} on your menu?",
    "Is it possible to get {x} at your place?",
    "I'd like to know if you have {x}.",
    "Does your shop have {x}?",
    "Could I order {x} from you?",
    "Do you also have {x}?",
    "Can you tell me if you have {x}?",
)

HAVE_REPLIES = (
    "Yes, we have {x}.",
    "Yes, we do have {x}.",
    "Yes, you will find {x} on the menu.",
    "Yes, you can get {x} here.",
    "Yes, of course we have {x}.",
    "Yes, we sell {x}.",
    "Yes, we offer {x}.",
    "Oh yes, we have {x} every day.",
    "Yes, you can order {x}.",
    "Yes, we always have {x}.",
    "Yes, certainly, we have {x}.",
    "Yes, our menu has {x}.",
    "Yes, many people order {x}.",
)

HOURS_ASKS = (
    "When are you open?",
    "What are your opening hours?",
    "What time do you open?",
    "What time do you close?",
    "How late are you open?",
    "When do you close tonight?",
    "Are you open today?",
    "Until when can I order?",
    "What hours are you open?",
    "Can you tell me your hours?",
    "When does the shop open?",
    "When does the kitchen close?",
    "How long are you open today?",
)

HOURS_REPLIES = (
    "We are open from {open} to {close}.",
    "Our hours are {open} to {close}.",
    "The shop opens at {open} and closes at {close}.",
    "We open at {open} and close at {close}.",
    "You can order from {open} until {close}.",
    "The kitchen is open from {open} until {close}.",
    "We bake from {open} to {close} every day.",
    "You will find us here from {open} to {close}.",
    "Every day we are open {open} to {close}.",
)
