// What a program in Node does: a document, a query, the models and an error, as JSON.
const OpenAI = require("openai");

async function main() {
  const client = new OpenAI({ baseURL: process.env.URL, apiKey: process.env.KEY, maxRetries: 0 });
  const documents = await client.embeddings.create({ model: process.env.MODEL, input: ["one", "two"] });
  const query = await client.embeddings.create({ model: `${process.env.MODEL}:query`, input: "why?" });
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  let refused = null;
  try {
    await client.embeddings.create({ model: "text-embedding-3-small", input: "a" });
  } catch (error) {
    refused = [error.constructor.name, error.status, error.code];
  }
  const rows = [...documents.data, ...query.data].map((each) => each.embedding);
  console.log(JSON.stringify({ rows, models, refused, usage: documents.usage }));
}

main();
