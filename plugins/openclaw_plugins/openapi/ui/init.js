// Starts the page. A file of its own, so that the Content-Security-Policy needs no inline script.
window.addEventListener("load", () => {
  SwaggerUIBundle({
    url: "/api/openapi.json",
    dom_id: "#ui",
    deepLinking: true,
    // The page never leaves the gateway: no validator badge, no stored credentials.
    validatorUrl: null,
    persistAuthorization: false,
    defaultModelsExpandDepth: 0,
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
  });
});
