"""What the client does not see of a conversation: kept, found again, put back.

Each module keeps one kind of it in the store for one caller. They speak alike: `keep` writes it down, `find` looks it
up when the client comes back, `put_back` gives the conversation with it in its places, and `may_be_kept` is False when
it is known without waiting that there is none. `Attempt` finds and keeps at the ends of its block, and
`ApprovalTurns.ask` keeps what it asks about.

| module                | what is kept                           | when                      | found by             |
|-----------------------|----------------------------------------|---------------------------|----------------------|
| `failed_requests`     | finished rounds, for a minute          | a request failed          | the request's bytes  |
| `interrupted_answers` | finished rounds, and the text sent     | an answer broke off       | messages up to it    |
| `hidden_rounds`       | the rounds before an answer in words   | it ended (TOOLWAY_REPLAY) | messages up to it    |
| `split_turns`         | a turn of the client's calls and ours  | the client gets its calls | the ids of its calls |
| `approval_turns`      | a turn whose calls wait for a person   | the answer is a question  | the question's code  |
| `found_tools`         | names of tools that the model searched | it found them             | messages up to there |
| `digests`             | nothing: they are what messages are known by when they come again                         |

All but the first are kept for TOOLWAY_STORE_TTL. `Conversation` asks for the first five in this order, and keeps them;
`SearchPolicy` and the chat dialect do so for `found_tools`.
"""
